"""Where shards of work are done: in this process, in processes beside it, on a Ray cluster; behind `ports.Executor`."""
