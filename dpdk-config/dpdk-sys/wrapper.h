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

/* Bytes of one mbuf segment. Returned in two registers: one call per packet, not two. */
struct plover_span {
	uint8_t *start;
	uint64_t bytes;
};

static inline struct plover_span
plover_mbuf_segment(struct rte_mbuf *mbuf)
{
	struct plover_span span;

	span.start = rte_pktmbuf_mtod(mbuf, uint8_t *);
	span.bytes = rte_pktmbuf_data_len(mbuf);
	return span;
}

static inline uint32_t
plover_mbuf_packet_bytes(const struct rte_mbuf *mbuf)
{
	return rte_pktmbuf_pkt_len(mbuf);
}

/* Bytes of the longest of `count` packets: one call per burst. */
static inline uint32_t
plover_burst_longest(struct rte_mbuf *const *mbufs, uint16_t count)
{
	uint32_t longest = 0;

	for (uint16_t i = 0; i < count; i++)
		longest = RTE_MAX(longest, rte_pktmbuf_pkt_len(mbufs[i]));
	return longest;
}

static inline uint16_t
plover_mbuf_segments(const struct rte_mbuf *mbuf)
{
	return mbuf->nb_segs;
}

static inline struct rte_mbuf *
plover_mbuf_next(const struct rte_mbuf *mbuf)
{
	return mbuf->next;
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
