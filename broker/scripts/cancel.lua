-- Cancel a batch: nothing of it starts from here on; workers are told to abort what runs.
-- ARGV: prefix, batch id. A complete batch stays as it is.
-- Returns 1, or 0 where there is no such batch.
return stop_batch(ARGV[1], ARGV[2], 'cancelled')
