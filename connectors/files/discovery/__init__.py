"""How a files source learns of new files: listings, manifests and notifications, and what it knows already."""
