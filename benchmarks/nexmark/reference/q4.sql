SELECT category, avg(final) AS average, count(*) AS auctions
FROM (
    SELECT max(b.price) AS final, a.category
    FROM auction a, bid b
    WHERE a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
    GROUP BY a.id, a.category
)
GROUP BY category
