"""From policies and tasks to a verdict; each file is one step of the way.

- `rules`, `protocols`: what is played: tasks, seeds, horizon, success
- `evaluate`: plays it: each episode is a job, each record at once on the disk
- `pool`: which worker plays what next, and again where one was lost
- `workers`, `ray_workers`: where they run: processes of this machine, or a cluster
- `stage`: what a worker does with its policy and its env
- `batching`: one policy for all workers
- `records`, `store`: what is known of an episode, and its place on the disk
- `reenactment`: a recorded episode again, bit for bit
- `metrics`, `comparison`, `aggregate`: numbers with their uncertainty
- `report`, `export`: pages, and files for others' tools
"""
