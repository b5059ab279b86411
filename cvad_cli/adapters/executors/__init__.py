"""Where shards of work run: in this process, in processes beside it, or on a Ray cluster. One contract, `ports.Executor`."""
