"""What a person sees: tables, progress, the closing summary. They show plain values and read nothing themselves."""
