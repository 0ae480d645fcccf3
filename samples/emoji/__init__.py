"""Parts of make_emoji: packages of drawings, ideas and their captions, colors, composed scenes."""
