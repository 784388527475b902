SELECT bidder FROM bid
