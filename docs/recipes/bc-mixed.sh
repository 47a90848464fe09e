#!/usr/bin/env bash
# One VLA for twelve tasks of four suites: Meta-World, robosuite, and the twins of RLBench and CALVIN.
source "$(dirname "$0")/common.sh"

METAWORLD=(-e MetaWorld-FaucetOpen -e MetaWorld-FaucetClose -e MetaWorld-DrawerOpen
           -e MetaWorld-ButtonPressTopdown -e MetaWorld-WindowClose)
OTHERS=(-e Robosuite-Lift
        -e RLBench-CloseBox -e RLBench-PushButton -e RLBench-TakeLidOffSaucepan
        -e CALVIN-OpenDrawer -e CALVIN-MoveSliderLeft -e CALVIN-TurnOnLed)
FAST=(-k render_quality=fast -k image_size=128)

# Meta-World's experts look at the state anew at each step and stand much noise; the others follow a
# plan.
vla-gym collect "${METAWORLD[@]}" -n 60 --noise 0.2 --seed 1000 -w "$WORKERS" "${FAST[@]}" \
    -o "$OUT/metaworld"
vla-gym collect "${OTHERS[@]}" -n 60 --noise 0.05 --seed 10000 -w "$WORKERS" "${FAST[@]}" \
    -o "$OUT/others"

vla-gym train -d "$OUT/metaworld" -d "$OUT/others" -o "$OUT/bc" --steps 8000 --seed "$SEED" \
    -m vision=cnn -m train_vision=true -m vision_size=64 -m readout=keypoints \
    -m head=regression -m chunk=8 -m normalize=mean_std \
    --eval-every 4000 --eval-episodes 5 -w "$WORKERS" --set threads=1

vla-gym eval -p "bc=$OUT/bc/best" -p random "${METAWORLD[@]}" -n 50 -w "$WORKERS" \
    "${FAST[@]}" -k split=test -o "$OUT/eval-metaworld"
vla-gym eval -p "bc=$OUT/bc/best" -p random "${OTHERS[@]}" -n 50 -w "$WORKERS" \
    "${FAST[@]}" -o "$OUT/eval-others"
vla-gym report "$OUT/eval-metaworld" "$OUT/eval-others" -o "$OUT/report"

python docs/recipes/plot_curves.py "$OUT/bc" -o "$OUT/curve.svg" \
    --title "Behaviour cloning, twelve tasks of four suites, one model"
