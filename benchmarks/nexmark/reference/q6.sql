WITH winning AS (
    SELECT a.id, a.seller, max(struct_pack(price := b.price, earlier := -epoch_us(b."dateTime"))) AS best
    FROM auction a, bid b
    WHERE a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
    GROUP BY a.id, a.seller
), numbered AS (
    SELECT id, seller, best.price AS price, row_number() OVER (PARTITION BY seller ORDER BY -best.earlier, id) AS n FROM winning
)
SELECT one.id, one.seller, avg(other.price) AS average
FROM numbered one JOIN numbered other ON other.seller = one.seller AND other.n BETWEEN one.n - 9 AND one.n
GROUP BY one.id, one.seller
