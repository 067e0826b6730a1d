"""When and in what order: intake, embed, freshness, and the command line that starts them."""
