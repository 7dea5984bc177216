/* selectors.h: the numbers of segments, for C and assembly. The null descriptor is 0; user selectors carry RPL 3. */
#pragma once

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE_32 0x1b
#define USER_DATA 0x23
#define USER_CODE 0x2b
#define TASK_STATE 0x30
