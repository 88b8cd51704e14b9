"""What reads files that a user may have got from elsewhere, given files that somebody has changed."""
