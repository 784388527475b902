SELECT auction, bidder, price, "dateTime", extra, left(CAST("dateTime" AS VARCHAR), 10) AS dt, substr(CAST("dateTime" AS VARCHAR), 12, 5) AS hm
FROM bid
