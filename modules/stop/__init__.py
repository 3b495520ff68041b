"""The parts of STOP, in reading order.

intra_frame, inter_frame    the two prompting stages, equation by equation, with their prompt nets P_s and P_t
dynamics                    N_s and N_t, the nets that measure change
frame_changes               the changes that they see, and how these are computed fast
timing, tokens              where frames lie in a clip, and how tokens lie in memory
merging                     alike patches become one token, beyond the paper (off by default)
"""
