#!/usr/bin/env bash
# TD3 with demonstrations against TD3 without, sparse reward, state: Meta-World DrawerOpen.
source "$(dirname "$0")/common.sh"

vla-gym collect -e MetaWorld-DrawerOpen -n 50 --seed 1000 -w 1 -k state=true -k cameras=[] \
    -o "$OUT/data"

for share in 0.5 0.0; do  # of demonstrations in each batch; at 0 they only normalise the state
    vla-gym rlpd -e MetaWorld-DrawerOpen -d "$OUT/data" -o "$OUT/share-$share" --seed "$SEED" \
        --algorithm TD3 --steps 6000 -k max_episode_steps=130 --set batch_size=128 \
        --set demonstration_share="$share"
done

vla-gym eval -p "rlpd=sb3:$OUT/share-0.5/best.zip" -p "rlpd-last=sb3:$OUT/share-0.5/last.zip" \
    -p "scratch=sb3:$OUT/share-0.0/best.zip" -p metaworld-expert -e MetaWorld-DrawerOpen -n 100 \
    --seed 5000 -w "$WORKERS" --max-steps 130 -k split=test --no-video -o "$OUT/eval"

python docs/recipes/plot_curves.py "$OUT"/share-* -o "$OUT/curve.svg" --xlabel "control steps" \
    --title "TD3 with and without demonstrations, DrawerOpen, state"
