#include "start64.S"
