"""Dynamic batches on an event loop: which requests form one, the thread that owns the device, and its watchdog."""
