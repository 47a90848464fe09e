#!/usr/bin/env bash
# PPO on sparse success improves a VLA that sees: Meta-World FaucetClose, two demonstrations.
source "$(dirname "$0")/common.sh"

SEEN=(-k render_quality=fast -k image_size=64)

vla-gym collect -e MetaWorld-FaucetClose -n 2 --seed 1000 --noise 0.1 -w 1 "${SEEN[@]}" \
    -k cameras=primary, -o "$OUT/data"

vla-gym train -d "$OUT/data" -o "$OUT/bc" --steps 250 --batch-size 32 -w "$WORKERS" \
    -m vision=cnn -m train_vision=true -m vision_size=64 -m readout=keypoints -m width=128 \
    -m head=regression -m chunk=8 -m normalize=mean_std \
    --set warmup=50 --set ema=0.99 --set validation=0.0 --set threads=1 \
    --eval-episodes 50 -k split=test

for seed in 0 1 2; do
    vla-gym finetune -c "$OUT/bc/last" -e MetaWorld-FaucetClose -o "$OUT/rl-$seed" --seed "$seed" \
        --steps 100000 --envs 16 "${SEEN[@]}" --set max_steps=120 --set eval_every=20000 \
        --set workers=1 --set rollout=1024 --set batch=1024 --set epochs=10 --set warmup=1 \
        --set std=0.2 --set learning_rate=2e-5 --set kl=0.0 --set target_kl=0.05
done

vla-gym eval -p "bc=$OUT/bc/last" -p "rl-0=$OUT/rl-0/last" -p "rl-1=$OUT/rl-1/last" \
    -p "rl-2=$OUT/rl-2/last" -p metaworld-expert -p random -e MetaWorld-FaucetClose -n 100 \
    -w "$WORKERS" "${SEEN[@]}" --max-steps 120 -k split=test --no-video -o "$OUT/eval"

python docs/recipes/plot_curves.py "$OUT"/rl-[0-9] -o "$OUT/curve.svg" --xlabel "control steps" \
    --title "PPO from a BC checkpoint, Meta-World FaucetClose, 64-pixel camera"
