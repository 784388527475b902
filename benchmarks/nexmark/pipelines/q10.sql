-- Bids as files in folders of their day and minute.
CREATE OR REFRESH STREAMING TABLE q10 PARTITIONED BY (dt, hm) AS
SELECT auction, bidder, price, "dateTime", extra, strftime("dateTime", '%Y-%m-%d') AS dt, strftime("dateTime", '%H:%M') AS hm
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');
