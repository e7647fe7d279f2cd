/*
 * The one header that bindgen reads: DPDK's own, and small accessors of ours.
 *
 * The accessors are here for what moves between DPDK 22.11, 23.11 and 24.11 (mbuf lengths and the
 * link status went into anonymous unions, rte_errno is a thread-local behind a macro) and for
 * string macros. They hold no logic; that belongs to dpdk-config.
 */
#ifndef PLOVER_DPDK_WRAPPER_H
#define PLOVER_DPDK_WRAPPER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* fopencookie */
#endif
#include <stddef.h>
#include <stdio.h>

#include <rte_config.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/*
 * Where the fields of an mbuf are that packets are read and written through: as numbers, so that
 * Rust reaches them without a call, whatever union they are in.
 */
enum {
	PLOVER_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	PLOVER_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	PLOVER_MBUF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs),
	PLOVER_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	PLOVER_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	PLOVER_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	PLOVER_MBUF_NEXT = offsetof(struct rte_mbuf, next),
};

/* Rust reads them with these types. */
#define PLOVER_MBUF_FIELD_BYTES(field) sizeof(((struct rte_mbuf *)0)->field)
_Static_assert(PLOVER_MBUF_FIELD_BYTES(buf_addr) == 8, "pointer");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(data_off) == 2, "u16");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(nb_segs) == 2, "u16");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(pkt_len) == 4, "u32");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(data_len) == 2, "u16");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(buf_len) == 2, "u16");
_Static_assert(PLOVER_MBUF_FIELD_BYTES(next) == 8, "pointer");

/* mbuf flags as integers: bindgen does not evaluate their macros. */
static const uint64_t PLOVER_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t PLOVER_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t PLOVER_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t PLOVER_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t PLOVER_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t PLOVER_TX_IPV6 = RTE_MBUF_F_TX_IPV6;

static inline void
plover_mbuf_request(struct rte_mbuf *mbuf, uint64_t flags, uint16_t l2_bytes, uint16_t l3_bytes,
		uint16_t l4_bytes, uint16_t segment_bytes)
{
	mbuf->ol_flags |= flags;
	mbuf->l2_len = l2_bytes;
	mbuf->l3_len = l3_bytes;
	mbuf->l4_len = l4_bytes;
	mbuf->tso_segsz = segment_bytes;
}

/* Whether the port is to cut this packet. */
static inline int
plover_mbuf_to_be_cut(const struct rte_mbuf *mbuf)
{
	return (mbuf->ol_flags & RTE_MBUF_F_TX_TCP_SEG) != 0;
}

enum {
	PLOVER_CHECKSUM_UNKNOWN,
	PLOVER_CHECKSUM_GOOD,
	PLOVER_CHECKSUM_BAD,
	PLOVER_CHECKSUM_UNFINISHED,
};

static inline uint32_t
plover_mbuf_rx_checksum(const struct rte_mbuf *mbuf)
{
	switch (mbuf->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) {
	case RTE_MBUF_F_RX_L4_CKSUM_GOOD:
		return PLOVER_CHECKSUM_GOOD;
	case RTE_MBUF_F_RX_L4_CKSUM_BAD:
		return PLOVER_CHECKSUM_BAD;
	case RTE_MBUF_F_RX_L4_CKSUM_NONE:
		return PLOVER_CHECKSUM_UNFINISHED;
	default:
		return PLOVER_CHECKSUM_UNKNOWN;
	}
}

static inline int
plover_rte_errno(void)
{
	return rte_errno;
}

/* Each message of DPDK's log goes to `write` (its default is standard output and syslog). */
static inline int
plover_log_to(ssize_t (*write)(void *cookie, const char *bytes, size_t count))
{
	cookie_io_functions_t functions = { .write = write };
	FILE *stream = fopencookie(NULL, "w", functions);

	return stream == NULL ? -1 : rte_openlog_stream(stream);
}

/* 1: up, 0: down, negative: the error of rte_eth_link_get_nowait. */
static inline int
plover_link_up(uint16_t port_id)
{
	struct rte_eth_link link;
	int status = rte_eth_link_get_nowait(port_id, &link);

	return status < 0 ? status : link.link_status == RTE_ETH_LINK_UP;
}

/* Where this build of DPDK looks for driver plugins. */
static inline const char *
plover_driver_folder(void)
{
	return RTE_EAL_PMD_PATH;
}

/* Year and month of the headers this was compiled with, e.g. 22 and 11. */
static inline unsigned int
plover_header_year(void)
{
	return RTE_VER_YEAR;
}

static inline unsigned int
plover_header_month(void)
{
	return RTE_VER_MONTH;
}

#endif
