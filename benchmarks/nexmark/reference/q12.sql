-- Over the times that were written down: they are all that is not in the events.
SELECT bidder, count(*) AS bid_count, time_bucket(INTERVAL 10 SECONDS, seen_at) AS window_start,
    time_bucket(INTERVAL 10 SECONDS, seen_at) + INTERVAL 10 SECONDS AS window_end
FROM q12_seen
GROUP BY bidder, window_start
