-- Windows that the watermark has closed; every bid is in five of them.
WITH counts AS (
    SELECT auction, count(*) AS num, time_bucket(INTERVAL 2 SECONDS, "dateTime") - INTERVAL (2 * n) SECONDS AS window_start
    FROM bid, range(5) AS windows(n)
    GROUP BY auction, window_start
    HAVING window_start + INTERVAL 10 SECONDS <= (SELECT bid FROM marks)
)
SELECT auction, num, window_start, window_start + INTERVAL 10 SECONDS AS window_end
FROM counts SEMI JOIN (SELECT window_start, max(num) AS num FROM counts GROUP BY window_start) USING (window_start, num)
