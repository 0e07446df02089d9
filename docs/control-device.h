/* The LightV control device, version 1. See control-device.md. SPDX-License-Identifier: Apache-2.0 */
#ifndef LIGHTV_CONTROL_DEVICE_H
#define LIGHTV_CONTROL_DEVICE_H

#define LIGHTV_CONTROL_SIZE 0x10000u
#define LIGHTV_CONTROL_MAGIC 0x5443564cu
#define LIGHTV_CONTROL_VERSION 1u

/* Read side: plain loads, little-endian. */
#define LIGHTV_R_MAGIC 0x000
#define LIGHTV_R_VERSION 0x004
#define LIGHTV_R_RESTORES 0x008
#define LIGHTV_R_GENERATION 0x010
#define LIGHTV_R_SEED 0x020
#define LIGHTV_R_WALL_CLOCK_NS 0x040
#define LIGHTV_R_WALL_CLOCK_TSC 0x048
#define LIGHTV_R_TSC_KHZ 0x050
#define LIGHTV_R_VCPUS 0x054
#define LIGHTV_R_RAM_BYTES 0x058
#define LIGHTV_R_ARGS_OFFSET 0x060
#define LIGHTV_R_ARGS_LEN 0x064
#define LIGHTV_R_ARGS_COUNT 0x068
#define LIGHTV_R_ENV_OFFSET 0x06c
#define LIGHTV_R_ENV_LEN 0x070
#define LIGHTV_R_ENV_COUNT 0x074
#define LIGHTV_R_FLAGS 0x078
#define LIGHTV_R_AGENT_OFFSET 0x07c
#define LIGHTV_R_AGENT_LEN 0x080

/* Write side: doorbells. */
#define LIGHTV_W_READY 0x800     /* 32 bit */
#define LIGHTV_W_PRINT 0x808     /* 64 bit: address | length << 48 */
#define LIGHTV_W_PRINT_ERR 0x810 /* 64 bit */
#define LIGHTV_W_EXIT 0x818      /* 32 bit: status */
#define LIGHTV_W_MARK 0x820      /* 32 bit */
#define LIGHTV_W_CLOCK 0x828     /* 32 bit */
#define LIGHTV_W_PANIC 0x830     /* 32 bit */

#define LIGHTV_PRINT(address, length) ((unsigned long long)(address) | ((unsigned long long)(length) << 48))

#endif
