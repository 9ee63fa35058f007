"""Numbers that change with `Progress`: the learning rate."""
