"""What a run comes to, for people and for scripts: nothing here changes how a guest runs."""
