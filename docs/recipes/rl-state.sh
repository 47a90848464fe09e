#!/usr/bin/env bash
# PPO on sparse success improves a VLA that acts on the state: Meta-World Reach, 25 demonstrations.
source "$(dirname "$0")/common.sh"

vla-gym collect -e MetaWorld-Reach -n 25 --seed 1000 -w 1 -k state=true -k cameras=[] -o "$OUT/data"

vla-gym train -d "$OUT/data" -o "$OUT/bc" --steps 1500 --batch-size 256 --lr 1e-3 -w "$WORKERS" \
    -m cameras=[] -m chunk=4 -m width=64 -m fusion=mlp -m head=regression \
    --set warmup=0 --set schedule=constant --set ema=0.0 --set validation=0.0 --set threads=1 \
    --eval-episodes 50 --set eval_max_steps=60 -k split=test

for seed in 0 1 2; do
    vla-gym finetune -c "$OUT/bc/last" -e MetaWorld-Reach -o "$OUT/rl-$seed" --seed "$seed" \
        --steps 120000 --envs 16 --set max_steps=60 --set eval_every=20000 --set workers=1 \
        --set batch=2048 --set epochs=10 --set std=0.2 --set kl=0.0 --set warmup=1
done

vla-gym eval -p "bc=$OUT/bc/last" -p "rl-0=$OUT/rl-0/last" -p "rl-1=$OUT/rl-1/last" \
    -p "rl-2=$OUT/rl-2/last" -p metaworld-expert -p random -e MetaWorld-Reach -n 50 -w "$WORKERS" \
    --max-steps 60 -k split=test --no-video -o "$OUT/eval"

python docs/recipes/plot_curves.py "$OUT"/rl-[0-9] -o "$OUT/curve.svg" --xlabel "control steps" \
    --title "PPO from a BC checkpoint, Meta-World Reach, state"
