"""The demo: real data through the main job, with services that it starts itself. Called by `waxlake demo`."""
