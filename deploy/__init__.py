"""What runs Atelier on engines that exist: see docs/deploy.md."""
