"""What users of Auto Loader rely on, a test a row of docs/auto-loader.md; the name carries the row's id."""
