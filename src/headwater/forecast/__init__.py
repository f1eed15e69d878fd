"""What an index of a training run would cost, before it is built: passes, hours, bytes, memory."""
