SELECT * EXCLUDE (place)
FROM (
    SELECT a.*, b.auction, b.bidder, b.price, b."dateTime" AS "bid_dateTime", b.extra AS bid_extra,
        row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b."dateTime", b.bidder, b.extra) AS place
    FROM auction a, bid b
    WHERE a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
)
WHERE place = 1
