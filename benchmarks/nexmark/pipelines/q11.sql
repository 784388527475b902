-- How many bids a person made in each session.
CREATE OR REFRESH STREAMING TABLE q11 AS
SELECT bidder, session_window.start AS starttime, session_window.end AS endtime, count(*) AS bid_count
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}') WATERMARK "dateTime" DELAY OF INTERVAL 4 SECONDS
GROUP BY bidder, session_window("dateTime", '10 seconds');
