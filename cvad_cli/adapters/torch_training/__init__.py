"""Training loops of our own in torch: the optimizer, and the steps that distil a teacher."""
