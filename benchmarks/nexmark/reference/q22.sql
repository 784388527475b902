SELECT auction, bidder, price, channel, folders[4] AS dir1, folders[5] AS dir2, folders[6] AS dir3
FROM (SELECT *, string_split(url, '/') AS folders FROM bid)
