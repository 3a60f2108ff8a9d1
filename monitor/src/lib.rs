//! What operators and load balancers read
