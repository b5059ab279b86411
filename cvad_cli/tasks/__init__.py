"""What a command does: settings in, a frozen record out, nothing printed."""
