#!/usr/bin/env bash
# PPO on sparse success from the wrist camera: Meta-World Reach, whose goal is only in the picture.
source "$(dirname "$0")/common.sh"

SEEN=(-k render_quality=fast -k image_size=64)

vla-gym collect -e MetaWorld-Reach -n 200 --noise 0.2 --seed 1000 --max-steps 100 -w "$WORKERS" \
    "${SEEN[@]}" -o "$OUT/data"

vla-gym train -d "$OUT/data" -o "$OUT/bc" --steps 5000 --batch-size 64 --lr 1e-3 -w 1 \
    -m cameras=wrist, -m vision=cnn -m train_vision=true -m vision_size=64 -m readout=keypoints \
    -m width=128 -m head=regression -m chunk=4 -m normalize=mean_std \
    --set warmup=50 --set ema=0.99 --set threads=1 --eval-episodes 0

for seed in 0 1 2; do
    vla-gym finetune -c "$OUT/bc/last" -e MetaWorld-Reach -o "$OUT/rl-$seed" --seed "$seed" \
        --steps 120000 --envs 16 "${SEEN[@]}" --set max_steps=60 --set eval_every=20000 \
        --set eval_seed=50000 --set workers=1 --set rollout=1024 --set batch=1024 --set epochs=10 \
        --set warmup=1 --set std=0.2 --set correlation=0.8 --set learning_rate=1e-4 \
        --set kl=0.0 --set target_kl=0.05
done

# From scratch: Stable-Baselines3's PPO on the same picture and proprio, the suite's own reward.
python docs/recipes/ppo_from_scratch.py -e MetaWorld-Reach --camera wrist --horizon 60 \
    --steps 120000 -o "$OUT/ppo.zip"

# Again with black pictures: what is solved without looking.
vla-gym eval -p "bc=$OUT/bc/last" -p "rl-0=$OUT/rl-0/last" -p "rl-1=$OUT/rl-1/last" \
    -p "rl-2=$OUT/rl-2/last" -p "scratch=sb3:$OUT/ppo.zip" -p metaworld-expert -p random \
    -e MetaWorld-Reach -n 50 -w "$WORKERS" "${SEEN[@]}" -k cameras=wrist, --max-steps 60 \
    -k split=test --perturb black --no-video -o "$OUT/eval"

python docs/recipes/plot_curves.py "$OUT"/rl-[0-9] -o "$OUT/curve.svg" --xlabel "control steps" \
    --title "PPO from a BC checkpoint, Reach, 64-pixel wrist camera"
