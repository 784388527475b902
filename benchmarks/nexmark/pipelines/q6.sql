-- What a seller's last ten auctions that were sold brought on average: a window function over the winning bids.
CREATE OR REFRESH MATERIALIZED VIEW q6_winning REFRESH POLICY INCREMENTAL AS
SELECT a.id, a.seller, b.price, b."dateTime"
FROM auction a JOIN bid b ON a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
QUALIFY row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b."dateTime") = 1;

CREATE OR REFRESH MATERIALIZED VIEW q6 REFRESH POLICY INCREMENTAL AS
SELECT id, seller, avg(price) OVER (PARTITION BY seller ORDER BY "dateTime", id ROWS BETWEEN 9 PRECEDING AND CURRENT ROW) AS average
FROM q6_winning;
