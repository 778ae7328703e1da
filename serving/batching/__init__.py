"""Forms dynamic batches on an event loop: which requests form one, the thread that owns the device, its watchdog."""
