#!/usr/bin/env bash
# PPO on sparse success from an undertrained clone: Meta-World FaucetOpen, with a 64-pixel camera.
# The policy that results makes no use of the picture: see README.md.
source "$(dirname "$0")/common.sh"

FAST=(-k render_quality=fast)

vla-gym collect -e MetaWorld-FaucetOpen -e MetaWorld-FaucetClose -e MetaWorld-DrawerOpen \
    -e MetaWorld-ButtonPressTopdown -e MetaWorld-WindowClose -n 60 --noise 0.2 --seed 1000 \
    -w "$WORKERS" "${FAST[@]}" -o "$OUT/data"

vla-gym train -d "$OUT/data" -o "$OUT/bc" --steps 250 --batch-size 64 -w "$WORKERS" \
    -m cameras=primary, -m vision=cnn -m train_vision=true -m vision_size=64 -m readout=keypoints \
    -m width=128 -m head=regression -m chunk=8 -m normalize=mean_std \
    --set warmup=50 --set ema=0.99 --set threads=1 --eval-episodes 0

for seed in 0 1 2; do
    vla-gym finetune -c "$OUT/bc/last" -e MetaWorld-FaucetOpen -o "$OUT/rl-$seed" \
        --seed "$seed" --steps 80000 --envs 16 "${FAST[@]}" -k image_size=64 \
        --set max_steps=150 --set eval_every=20000 --set workers=1 --set rollout=1024 \
        --set batch=1024 --set epochs=10 --set warmup=1 --set std=0.2 --set correlation=0.8 \
        --set learning_rate=3e-5 --set kl=0.0 --set target_kl=0.05
done

# From scratch: Stable-Baselines3's PPO on the same picture and proprio, the suite's own reward.
# 88,000 steps: the runs above end with the rollout that passes 80,000.
python docs/recipes/ppo_from_scratch.py -e MetaWorld-FaucetOpen --camera primary --horizon 150 \
    --steps 88000 -o "$OUT/ppo.zip"

vla-gym eval -p "bc=$OUT/bc/last" -p "rl-0=$OUT/rl-0/last" -p "rl-1=$OUT/rl-1/last" \
    -p "rl-2=$OUT/rl-2/last" -p "scratch=sb3:$OUT/ppo.zip" -p metaworld-expert -p random \
    -e MetaWorld-FaucetOpen -n 50 -w "$WORKERS" "${FAST[@]}" -k image_size=64 --max-steps 150 \
    -k split=test --no-video -o "$OUT/eval"

python docs/recipes/plot_curves.py "$OUT"/rl-[0-9] -o "$OUT/curve.svg" --xlabel "control steps" \
    --title "PPO from a BC checkpoint, FaucetOpen, 64-pixel camera"
