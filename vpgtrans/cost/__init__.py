"""What a transfer costs before it is paid: FLOPs, memory, hours and money from configs alone, no weights."""
