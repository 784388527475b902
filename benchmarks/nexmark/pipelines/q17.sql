-- Bids and prices of each auction a day, kept up to date.
CREATE TEMPORARY VIEW q17_bids AS
SELECT auction, price, "dateTime", strftime("dateTime", '%Y-%m-%d') AS day
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');

CREATE OR REFRESH STREAMING TABLE q17 AS
SELECT auction, day, count(*) AS total_bids,
    count(*) FILTER (price < 10000) AS rank1_bids,
    count(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
    count(*) FILTER (price >= 1000000) AS rank3_bids,
    min(price) AS min_price, max(price) AS max_price, avg(price) AS avg_price, sum(price) AS sum_price
FROM STREAM(q17_bids) WATERMARK "dateTime" DELAY OF INTERVAL 4 SECONDS
GROUP BY auction, day;
