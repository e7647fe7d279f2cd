//! As much of gRPC and etcd's API as a put needs.

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

/// A response is a header and a revision; far more is none.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Keys are used again and again.
const KEYS: u64 = 1000;

/// A connection on which many puts may be under way.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
    uri: String,
}

impl Client {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connect to etcd at {address}"))?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let (requests, connection) = client::handshake(stream).await.context("HTTP/2")?;
        tokio::spawn(async move {
            // How it ended, its requests tell.
            let _ = connection.await;
        });
        Ok(Self {
            requests,
            uri: format!("http://{address}/etcdserverpb.KV/Put"),
        })
    }

    /// Puts a value; returns when etcd says that it is committed.
    pub async fn put(&self, number: u64, value: &Bytes) -> Result<()> {
        let request = Request::post(self.uri.as_str())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .context("a request")?;
        let mut requests = self.requests.clone().ready().await.context("HTTP/2")?;
        let (response, mut body) = requests.send_request(request, false).context("send")?;
        body.send_data(message(number, value), true)
            .context("send")?;
        let mut response = response.await.context("etcd's answer")?;
        check(response.headers())?;
        let mut received = 0;
        while let Some(data) = response.body_mut().data().await {
            let data = data.context("etcd's answer")?;
            received += data.len();
            ensure!(received <= RESPONSE_BYTES_MAX, "etcd's answer is too long");
            let flow = response.body_mut().flow_control();
            flow.release_capacity(data.len()).context("HTTP/2")?;
        }
        let trailers = response.body_mut().trailers().await;
        let trailers = trailers
            .context("etcd's answer")?
            .context("no gRPC status")?;
        ensure!(trailers.contains_key("grpc-status"), "no gRPC status");
        check(&trailers)
    }
}

/// A gRPC status that is not 0 is an error.
fn check(headers: &HeaderMap) -> Result<()> {
    match headers.get("grpc-status").map(http::HeaderValue::as_bytes) {
        None | Some(b"0") => Ok(()),
        Some(_) => bail!("etcd refused a put: {headers:?}"),
    }
}

/// `PutRequest { key = 1, value = 2 }` behind gRPC's five bytes.
fn message(number: u64, value: &[u8]) -> Bytes {
    let key = (number % KEYS).to_be_bytes();
    let mut request = BytesMut::with_capacity(value.len() + 32);
    for (tag, bytes) in [(0x0a, &key[..]), (0x12, value)] {
        request.put_u8(tag);
        put_varint(&mut request, bytes.len());
        request.put_slice(bytes);
    }
    let mut message = BytesMut::with_capacity(request.len() + 5);
    message.put_u8(0);
    message.put_u32(request.len() as u32);
    message.put_slice(&request);
    message.freeze()
}

fn put_varint(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_in_its_byte_form() {
        let value = vec![9; 300];
        let message = message(1, &value);
        assert_eq!(message[0], 0, "not compressed");
        assert_eq!(message[1..5], 313u32.to_be_bytes());
        assert_eq!(message[5..15], [0x0a, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(message[15..18], [0x12, 0xac, 2], "300 in seven bits each");
        assert_eq!(message[18..], value);
    }

    #[test]
    fn a_status_that_is_not_0_is_an_error() {
        let mut headers = HeaderMap::new();
        assert!(check(&headers).is_ok());
        headers.insert("grpc-status", "0".parse().expect("a value"));
        assert!(check(&headers).is_ok());
        headers.insert("grpc-status", "14".parse().expect("a value"));
        assert!(check(&headers).is_err());
    }
}
