"""What the client tells experts and trainers: `order` what an expert is to be, `messages` all of it on the wire."""
