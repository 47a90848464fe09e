"""Training: behaviour cloning (`bc`), and reinforcement learning from what it has learned."""
