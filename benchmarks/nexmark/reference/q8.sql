WITH came AS (
    SELECT DISTINCT id, name, time_bucket(INTERVAL 10 SECONDS, "dateTime") AS window_start FROM person
), sold AS (
    SELECT DISTINCT seller, time_bucket(INTERVAL 10 SECONDS, "dateTime") AS window_start FROM auction
)
SELECT came.id, came.name, came.window_start, came.window_start + INTERVAL 10 SECONDS AS window_end
FROM came JOIN sold ON came.id = sold.seller AND came.window_start = sold.window_start
WHERE came.window_start + INTERVAL 10 SECONDS <= (SELECT least(person, auction) FROM marks)
