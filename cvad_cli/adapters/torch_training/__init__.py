"""cvad's own training code in torch: the optimizer, and the steps that distil a teacher."""
