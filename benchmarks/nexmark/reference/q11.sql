-- Sessions that the watermark has closed.
WITH gaps AS (
    SELECT bidder, "dateTime", coalesce("dateTime" - lag("dateTime") OVER bids >= INTERVAL 10 SECONDS, false) AS is_first
    FROM bid WINDOW bids AS (PARTITION BY bidder ORDER BY "dateTime")
), sessions AS (
    SELECT bidder, "dateTime", count(*) FILTER (is_first) OVER (PARTITION BY bidder ORDER BY "dateTime") AS session FROM gaps
)
SELECT bidder, count(*) AS bid_count, min("dateTime") AS starttime, max("dateTime") + INTERVAL 10 SECONDS AS endtime
FROM sessions
GROUP BY bidder, session
HAVING endtime <= (SELECT bid FROM marks)
