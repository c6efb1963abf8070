// To be imported before the product: connections are lent as soon as may be.

process.env['STILLPOINT_LEND_AFTER'] = '2'
