"""Many runs from one command: the plan, the outcomes, the report."""
