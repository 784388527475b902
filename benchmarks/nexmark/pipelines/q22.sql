-- The folders of the address.
CREATE OR REFRESH STREAMING TABLE q22 AS
SELECT auction, bidder, price, channel,
    split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2, split_part(url, '/', 6) AS dir3
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');
