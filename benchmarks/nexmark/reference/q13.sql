SELECT b.auction, b.bidder, b.price, b."dateTime", s.value
FROM bid b, side_input s
WHERE b.auction % 10000 = s.key
